"""What this machine has: device, memory, disk, container, installed packages."""
