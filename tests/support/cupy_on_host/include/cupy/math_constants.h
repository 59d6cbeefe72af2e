// In place of CuPy's header of the same name, which is for the device.
#pragma once
#include <cmath>
