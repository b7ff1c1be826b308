"""The ground that both halves stand on: taxonomies, errors, images, crops, model files, runtime and files."""
