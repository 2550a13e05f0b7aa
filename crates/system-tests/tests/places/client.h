/*
 * What the clients of this folder have in common: they know Linux alone, name the step they are at, and
 * end at the first that fails. CLIENT is the client's name, defined before this is included.
 */
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *step = "starting";

/* Ends with one line on standard error, and 1. */
__attribute__((format(printf, 1, 2), noreturn))
static void fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	fprintf(stderr, CLIENT ": %s: ", step);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, " (%s)\n", strerror(error));
	exit(1);
}

/* The last system call must have succeeded. */
static long sure(long result, const char *what)
{
	if (result < 0)
		fail("%s", what);
	return result;
}

/* The node of the device at a PCI address, as sysfs names it. */
static void find_node(const char *address, char *path, size_t size)
{
	char folder[200];
	struct dirent *entry;
	DIR *listing;

	snprintf(folder, sizeof(folder), "/sys/bus/pci/devices/%s/vfio-dev", address);
	step = folder;
	listing = opendir(folder);
	if (!listing)
		fail("opening it");
	path[0] = 0;
	while ((entry = readdir(listing)))
		if (!strncmp(entry->d_name, "vfio", 4))
			snprintf(path, size, "/dev/vfio/devices/%s", entry->d_name);
	closedir(listing);
	if (!path[0])
		fail("no vfioN in it");
	step = "using the device";
}
