"""Preprocessing: scalers of observations, actions and rewards."""
