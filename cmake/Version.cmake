# FDPP_VERSION: the one that the Python package states.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/../fdpp_ort/__init__.py)
file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/../fdpp_ort/__init__.py FDPP_VERSION REGEX "^__version__ = ")
string(REGEX REPLACE ".*\"(.*)\".*" "\\1" FDPP_VERSION "${FDPP_VERSION}")
