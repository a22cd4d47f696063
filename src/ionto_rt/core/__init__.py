"""The compiled real-time core: one module per stage of the tick. It knows no file, no treatment and no terminal."""
