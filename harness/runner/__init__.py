"""The parent's side: how a trial's process begins, is watched and ends."""
