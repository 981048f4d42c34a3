"""Config: what can be set (`schema`), where it comes from (`load`), how the batch falls on ranks (`geometry`)."""
