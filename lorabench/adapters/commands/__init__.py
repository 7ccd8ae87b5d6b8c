"""The commands of `python -m lorabench.adapters`, one file each; heavy imports wait until a command runs."""
