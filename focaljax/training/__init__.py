"""Training: objective, optimiser, state, step, checkpoints, mesh and the loop, in the order of the data.

State is a plain pytree, and the train step a pure function of (state, batch).
"""
