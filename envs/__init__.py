"""The world: scheduling state, contention, interference predictor, event dynamics, Gymnasium and vector environments."""
