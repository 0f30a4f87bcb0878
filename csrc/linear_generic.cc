#define RANVIER_LINEAR linear_generic
#include "linear_body.h"
