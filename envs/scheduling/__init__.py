"""The scheduling core that the simulator and the live engine share: whoever changes a line here changes both."""
