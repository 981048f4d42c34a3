"""Config: what can be set (`schema`), how it is read and checked (`load`, `validate`), the batch (`geometry`)."""
