"""What is looked at before hours are spent: GPU, Hub, disk; `appliance doctor`."""
