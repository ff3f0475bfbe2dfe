//! Single rules of the lane, each as a short story. The simulation runs all of them against each other.
