"""What is learnt: which kind of model, how a row becomes its input, what is trained, generated and compared."""
