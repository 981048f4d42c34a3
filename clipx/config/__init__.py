"""Config: what can be set (`schema`), how it is read and checked (`load`), how the batch divides (`geometry`)."""
