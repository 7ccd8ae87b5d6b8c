"""lorabench: what do the weights of a LoRA adapter say about what it was fine-tuned on?"""

__version__ = "0.1.0"
