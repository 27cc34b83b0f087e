"""Moving averages of variables on the device that holds them, one module for each backend.

Each takes `average += rate * (value - average)` in float32, which loses fewer digits than
`decay * average + rate * value` and gives exactly the value where the rate is 1.
"""
