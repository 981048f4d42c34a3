"""Training: config to run (`build`), one step (`step`, `grad_cache`), the loop (`trainer`), its figures (`monitor`)."""
