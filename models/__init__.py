"""Image models, data sets and the training loop: plain PyTorch, no Ray, Optuna or MLflow."""
