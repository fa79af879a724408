"""The page that visualize_attention.py --html writes."""
