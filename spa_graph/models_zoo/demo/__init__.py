MODEL_FILE=HELDOUT_FILE="x"
accuracy=None
