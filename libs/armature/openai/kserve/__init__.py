"""The words of KServe v2 for text: tensors in and out, and what a model says of itself."""
