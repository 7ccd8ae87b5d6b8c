"""The commands of `python -m lorabench.zoo`, one file each."""
