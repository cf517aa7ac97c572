"""Sites that train the same network, each on its own cases, averaged round by round. Its result is a trained model."""
