"""The diffusion model: the frozen base, and the policy that is the base with LoRA and ACE."""
