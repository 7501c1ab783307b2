"""The second opinion: the real model's training step on fake tensors. Imports torch, and only when it traces."""
