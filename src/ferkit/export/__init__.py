"""From a run to a model file, from models to an ensemble file, and the cards of both."""
