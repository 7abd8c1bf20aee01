"""What training costs here and in other trainers: `python -m benchmarks.peers`."""
