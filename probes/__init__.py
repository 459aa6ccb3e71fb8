"""What latents hold and what acting costs: probing, swaps, traces, milliseconds and bytes."""
