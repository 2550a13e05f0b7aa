/*
 * The VFIO self-tests of Linux 7.2.13 call calloc_assert(), which nothing in them defines. Included
 * before anything else by the compiler's -include; used where VFIO_ASSERT_NOT_NULL() is known.
 */
#define calloc_assert(count, size)                         \
	({                                                 \
		void *zeroed_ = calloc((count), (size));   \
		VFIO_ASSERT_NOT_NULL(zeroed_);             \
		zeroed_;                                   \
	})
