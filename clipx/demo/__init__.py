"""`clipx demo`: data, training, resume, evaluation and export, on images that it draws itself."""
