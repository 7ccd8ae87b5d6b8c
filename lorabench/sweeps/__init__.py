"""Many runs by one command: `python -m lorabench --multirun`."""
