"""How the embedded default is made: autoencoder, base model, reward models and judges on the phantom."""
