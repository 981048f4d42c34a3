"""What people do with a trained model: classify, embed, search."""
