"""The columns of a batch that hold what teachers said of its pictures and texts."""


def image_column(teacher: str) -> str:
    """Name of the column with a teacher's embeddings of the drawn views, float32 (I, D), of unit length."""
    return f"teacher_{teacher}_image_ID"


def text_column(teacher: str) -> str:
    """Name of the column with a teacher's embeddings of the drawn captions, float32 (B, D), of unit length."""
    return f"teacher_{teacher}_text_BD"
