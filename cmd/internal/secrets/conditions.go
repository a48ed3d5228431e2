package secrets

import (
	"errors"
	"fmt"

	"postroad/queue"
	"postroad/signer/vault"
)

// Conditions are what is wrong with the place of secrets at the moment: with Vault, that is, and with certificates that it issues.
func (s *Secrets) Conditions() []queue.Condition {
	if s.vault == nil {
		return nil
	}
	var list []queue.Condition
	s.mu.Lock()
	for _, i := range s.issued {
		if c, is := i.condition(); is {
			list = append(list, c)
		}
	}
	s.mu.Unlock()
	t, is := s.vault.Trouble()
	if !is {
		return list
	}
	address := s.o.Config.Secrets.Vault.Address
	c := queue.Condition{Part: "secrets", Since: t.Since}
	switch {
	case t.IsSealed():
		c.Text = fmt.Sprintf("Vault is sealed (%s)", address)
		c.Do = "unseal it with `vault operator unseal`; what waits for it goes on by itself"
	case errors.Is(t.Err, vault.ErrUnavailable):
		c.Text = fmt.Sprintf("Vault does not answer (%s): %v", address, t.Err)
		c.Do = "see that it runs, that it has a leader and that this machine reaches it (secrets.vault.address)"
	default:
		c.Text = fmt.Sprintf("Vault refuses our login (%s): %v", address, t.Err)
		c.Do = "give this role another secret id, or what else it proves itself by (secrets.vault), and see its policy"
	}
	return append(list, c)
}
