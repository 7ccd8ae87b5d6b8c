"""The installed PEFT, diffusers and transformers judge what the toolkit writes and reads."""
