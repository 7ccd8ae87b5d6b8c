"""Trainings of a real transformer with real LoRAs that ask whether the advice of `lorabench.health` holds."""
