"""Building blocks: attention, transformer layers, positions, embeddings by gymnasium space."""
