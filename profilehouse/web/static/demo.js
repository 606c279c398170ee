/* The demo shop: its shelves, and the live profile beside them. */
'use strict';

const CATEGORIES = {
  GROCERY: { name: 'Groceries', tint: '#e9f0fb', ink: '#2a5298', icon: 'M9 3h6v4l2 3v11H7V10l2-3zM9 7h6M7 14h10' },
  PRODUCE: { name: 'Fruit & vegetables', tint: '#e6f4e4', ink: '#2f6b2a', icon: 'M12 8c-3-3-8-1-8 4s4 9 6 9c1 0 1-.5 2-.5s1 .5 2 .5c2 0 6-4 6-9s-5-7-8-4zM12 8c0-3 1-5 4-5' },
  PASTRY: { name: 'Bakery', tint: '#fbf0dc', ink: '#83540f', icon: 'M4 13c0-4 4-7 8-7s8 3 8 7c0 2-1 3-3 3H7c-2 0-3-1-3-3zM9 9l1 4M13 8.5l1 4M6 16v3h12v-3' },
  DELI: { name: 'Deli', tint: '#fbe8e4', ink: '#93331f', icon: 'M3 15L17 5c3 1 4 4 4 7v3zM3 15h18v4H3zM9 17h.01M14 10h.01M17 17h.01' },
  FLORAL: { name: 'Flowers', tint: '#f6e6f3', ink: '#862d72', icon: 'M12 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM12 6c0-4-4-4-4-1M12 6c0-4 4-4 4-1M10 8c-4 0-4 4-1 4M14 8c4 0 4 4 1 4M12 10v11M12 18c-3 0-5-1-5-4M12 18c3 0 5-1 5-4' },
};

const PRODUCTS = [
  ['1082185', 'PRODUCE', 'Bananas', 94],
  ['866227', 'PASTRY', 'Donut', 50],
  ['1029743', 'GROCERY', 'Milk, a gallon', 269],
  ['1132771', 'DELI', 'Counter cheese', 299],
  ['919766', 'FLORAL', 'Bunch of roses', 1299],
  ['1127831', 'PRODUCE', 'Strawberries', 250],
  ['1095275', 'PASTRY', 'Bagel', 50],
  ['981760', 'GROCERY', 'Eggs, a dozen', 109],
  ['883003', 'DELI', 'Ham', 377],
  ['900175', 'FLORAL', 'Daisies', 699],
  ['961554', 'PRODUCE', 'Baby carrots', 169],
  ['5568228', 'PASTRY', 'French bread', 150],
  ['883404', 'GROCERY', 'White bread', 99],
  ['933835', 'DELI', 'Dry sausage', 279],
  ['843338', 'FLORAL', 'Rose bouquet', 699],
  ['866211', 'PRODUCE', 'White grapes', 314],
  ['1014948', 'PASTRY', 'Cookies', 200],
  ['859075', 'GROCERY', 'Shredded cheese', 150],
  ['986912', 'DELI', 'Warm side dish', 251],
  ['1048507', 'FLORAL', 'Single stem', 322],
].map(([id, category, name, cents]) => ({ id, category, name, cents }));

const HOUSEHOLDS = ['1', '371', '718', '1111', '1453', '1609'];
const PICKED = 4;
const IDLE_MS = 400;
const AWAITING_MS = 15;
const PATIENCE_MS = 10000;
const CONSENT = 'corner-market.consent';

const at = (id) => document.getElementById(id);
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let category = null;
let words = '';
let user = null;
let seen = null; // the profile that is shown
let subject = ''; // whose it is
let pending = []; // clicks that the profile does not show yet: {begin, clicks}
let times = [];

// The shop.

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function picture({ tint, ink, icon }) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('stroke', ink);
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', icon);
  svg.append(path);
  const box = make('span', { className: 'picture' }, svg);
  box.style.background = tint;
  return box;
}

function money(cents) {
  return '$' + (cents / 100).toFixed(2);
}

function card(product) {
  const kind = CATEGORIES[product.category];
  const look = make(
    'button',
    { type: 'button', className: 'look' },
    picture(kind),
    make('span', { className: 'name', textContent: product.name }),
    make('span', { className: 'what', textContent: kind.name })
  );
  const buy = make('button', { type: 'button', textContent: 'Buy' });
  buy.setAttribute('aria-label', 'Buy ' + product.name);
  buy.addEventListener('click', () => purchase(product));
  const price = make('span', { textContent: money(product.cents) });
  const article = make('article', {}, look, make('div', { className: 'buy' }, price, buy));
  article.dataset.contentId = product.id;
  article.dataset.category = product.category;
  return article;
}

function purchase(product) {
  profilehouse.track('purchase', {
    order_id: 'web-' + Date.now() + '-' + Math.floor(Math.random() * 1e6),
    content_id: product.id,
    category: product.category,
    value_cents: product.cents,
  });
}

function showShelf() {
  const found = PRODUCTS.filter(
    (product) =>
      (category === null || product.category === category) &&
      product.name.toLowerCase().includes(words.toLowerCase())
  );
  at('shelf').replaceChildren(...found.map(card));
  at('nothing').hidden = found.length > 0;
}

function showCategories() {
  const buttons = [[null, 'All'], ...Object.entries(CATEGORIES).map(([key, { name }]) => [key, name])];
  at('categories').replaceChildren(
    ...buttons.map(([key, name]) => {
      const button = make('button', { type: 'button', textContent: name });
      button.setAttribute('aria-pressed', String(category === key));
      button.addEventListener('click', () => {
        category = key;
        for (const each of at('categories').children) {
          each.setAttribute('aria-pressed', String(each === button));
        }
        showShelf();
        profilehouse.page();
      });
      return button;
    })
  );
}

/* The next page is personal: products of the category that interests most. */
function showPicked(profile) {
  const favourite = (profile && profile.interests.find((key) => key in CATEGORIES)) || '';
  const section = at('picked');
  if (section.dataset.favourite === favourite) return;
  section.dataset.favourite = favourite;
  at('picked-title').textContent = favourite
    ? 'Picked for you: ' + CATEGORIES[favourite].name
    : 'Popular today';
  const likely = PRODUCTS.filter((product) => !favourite || product.category === favourite);
  section.querySelector('.cards').replaceChildren(...likely.slice(0, PICKED).map(card));
}

// The profile.

function name(id) {
  const product = PRODUCTS.find((each) => each.id === id);
  return product ? product.name : id;
}

function label(key) {
  return key in CATEGORIES ? CATEGORIES[key].name : key.charAt(0) + key.slice(1).toLowerCase();
}

/* Replace a list's entries, those that changed are marked for a moment. */
function fill(list, entries) {
  const before = new Set([...list.children].map((each) => each.textContent));
  list.replaceChildren(...entries);
  for (const each of entries) {
    each.classList.toggle('changed', before.size > 0 && !before.has(each.textContent));
  }
}

function show(profile) {
  seen = profile;
  showPicked(profile);
  at('features').hidden = profile === null;
  if (profile === null) return;
  const scores = profile.interests_scores.map(Number);
  fill(
    at('interests'),
    profile.interests.length === 0
      ? [make('li', { textContent: 'None yet.' })]
      : profile.interests.map((key, place) => {
          const meter = make('meter', { max: Math.max(...scores), value: scores[place] });
          meter.setAttribute('aria-label', 'Interest in ' + label(key));
          return make('li', {}, make('span', { textContent: label(key) }), meter);
        })
  );
  const counts = {
    'Page views': profile.page_views_lifetime,
    Seen: profile.impressions_lifetime,
    Clicks: profile.clicks_lifetime,
    Bought: profile.purchases_lifetime,
  };
  fill(
    at('counts'),
    Object.entries(counts).map(([what, count]) =>
      make(
        'div',
        {},
        make('dt', { textContent: what }),
        make('dd', { textContent: count.toLocaleString('en') })
      )
    )
  );
  const recent = profile.recent_clicks.slice(0, 5);
  fill(at('recent'), recent.map((id) => make('li', { textContent: name(id) })));
  const segments = Object.keys(profile).filter((key) => key.startsWith('is_'));
  at('segments').replaceChildren(
    ...segments.map((key) =>
      make('li', {
        className: profile[key] ? 'yes' : '',
        textContent: key.slice('is_'.length) + (profile[key] ? ': yes' : ': no'),
      })
    )
  );
  at('bought').textContent =
    profile.top_categories.map(label).join(', ') +
    (profile.top_categories.length ? ', ' : '') +
    money(profile.spend_cents_lifetime) +
    ' in all.';
}

function clicksOf(profile) {
  return profile === null ? 0 : profile.clicks_lifetime;
}

function clicked() {
  if (!at('consent').checked) return;
  const last = pending.length ? pending[pending.length - 1].clicks : clicksOf(seen);
  pending.push({ begin: performance.now(), clicks: last + 1 });
  wake();
}

/* Called when the profile was painted. */
function measure() {
  const now = performance.now();
  const there = pending.filter((each) => each.clicks <= clicksOf(seen));
  pending = pending.filter((each) => !there.includes(each) && now - each.begin < PATIENCE_MS);
  if (!there.length) return;
  times.push(...there.map((each) => now - each.begin));
  times = times.slice(-99);
  const sorted = times.slice().sort((one, other) => one - other);
  at('milliseconds').textContent = Math.round(times[times.length - 1]);
  at('median').textContent =
    'Median of ' + times.length + ': ' + Math.round(sorted[Math.floor(sorted.length / 2)]) + ' ms';
}

async function read() {
  const { anonymous_id, user_id } = profilehouse.identity();
  const whose = user_id ? '/demo/profiles/' + encodeURIComponent(user_id) : '/demo/visitors/' + anonymous_id;
  const answer = await fetch(whose, { cache: 'no-store' });
  const profile = answer.ok ? await answer.json() : null;
  if (!at('consent').checked) return;
  if (whose !== subject) {
    subject = whose;
    pending = [];
  }
  if (answer.ok) {
    say('');
  } else if (answer.status === 404) {
    say('No profile yet. Look at a product.');
  } else {
    say('The profile cannot be read now. Is `profilehouse stream` running?');
    return;
  }
  if (JSON.stringify(profile) !== JSON.stringify(seen)) show(profile);
  await new Promise(requestAnimationFrame);
  measure();
}

function say(text) {
  if (at('state').textContent !== text) at('state').textContent = text;
}

let wake = () => {};

/* Read the profile again and again: at once after a click, else now and then. */
async function follow() {
  for (;;) {
    if (at('consent').checked && !document.hidden) {
      try {
        await read();
      } catch (error) {
        say('The collector does not answer.');
      }
    }
    const woken = new Promise((resolve) => {
      wake = resolve;
    });
    await (pending.length ? wait(AWAITING_MS) : Promise.race([woken, wait(IDLE_MS)]));
  }
}

// The customer.

function showCustomer() {
  at('logout').hidden = user === null;
  at('user').hidden = user !== null;
  at('account').querySelector('label').hidden = user !== null;
  at('account').querySelector('[type=submit]').hidden = user !== null;
  const agreed = at('consent').checked;
  at('who').textContent =
    (user === null ? 'A visitor who is not logged in' : 'Household ' + user) +
    (agreed ? '.' : ': nothing is stored, no profile is made.');
  if (!agreed) {
    pending = [];
    show(null);
    say('Allow profiling to see a profile.');
  }
  wake();
}

function start() {
  at('user').append(
    ...HOUSEHOLDS.map((id) => make('option', { value: id, textContent: 'Household ' + id }))
  );
  showPicked(null);
  showCategories();
  showShelf();
  at('consent').checked = localStorage.getItem(CONSENT) !== null;
  document.addEventListener('click', (click) => {
    if (click.target.closest('[data-content-id]')) clicked();
  });
  profilehouse.init({ endpoint: '/events', consent: at('consent').checked });
  user = profilehouse.identity().user_id || null;
  showCustomer();
  at('consent').addEventListener('change', () => {
    const agreed = at('consent').checked;
    if (agreed) localStorage.setItem(CONSENT, 'yes');
    else localStorage.removeItem(CONSENT);
    profilehouse.consent(agreed);
    showCustomer();
  });
  addEventListener('storage', ({ key, newValue }) => {
    if (key !== CONSENT) return;
    at('consent').checked = newValue !== null;
    profilehouse.consent(newValue !== null);
    showCustomer();
  });
  at('account').addEventListener('submit', (submit) => {
    submit.preventDefault();
    user = at('user').value;
    profilehouse.login(user);
    showCustomer();
    at('logout').focus();
  });
  at('logout').addEventListener('click', () => {
    user = null;
    profilehouse.logout();
    showCustomer();
    at('user').focus();
  });
  at('search').addEventListener('submit', (submit) => {
    submit.preventDefault();
    words = at('words').value.trim();
    showShelf();
    if (words) profilehouse.track('search', { properties: { words } });
  });
  follow();
}

start();
