"""BackdoorVLM, the reproducible study: measure how backdoors get into vision-language models, and what stops them."""

__version__ = "0.1.0"
