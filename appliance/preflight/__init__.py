"""What is inspected before hours are spent: GPU, Hub, disk; `appliance doctor`."""
