// In place of the device's own.
#pragma once
#include <cmath>
