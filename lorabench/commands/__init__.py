"""The frame of every command line here: answers, errors, exit codes, and options made from options classes."""
