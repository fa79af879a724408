"""Code that both experiments need: byte for byte the same in the two folders, and free of models and tokenizers."""
