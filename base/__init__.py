"""The ground floor: errors, files whole or absent, hashes, seeds. Imports nothing of ours."""
