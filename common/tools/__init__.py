"""Commands that no training run needs: `python3 -m common.tools` lists them."""
