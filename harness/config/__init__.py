"""From words to components: Hydra, knobs of training, and what a trial is known by."""
