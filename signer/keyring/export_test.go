package keyring

// MaxMissing is the bound that the test of bounds looks at.
const MaxMissing = maxMissing

// Remembered is how many domains d keeps in memory.
func Remembered(d *Dir) (known, missing int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.known), len(d.missing)
}
