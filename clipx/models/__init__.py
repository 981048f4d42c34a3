"""The image tower, the text towers, and CLIP, which has one of each."""
