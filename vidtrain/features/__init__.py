"""From a frozen encoder and clips to the phases that train heads on it; tokens are kept on disk on demand.

Read frozen_encoder.py first.

frozen_encoder.py  what a phase on a frozen encoder trains and reads
store.py           tokens on disk, safe against kills
"""
